"""What may be said and when: the table of states, the control messages, the frames. No sockets, threads or clocks."""
