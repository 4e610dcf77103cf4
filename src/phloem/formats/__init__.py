"""Bytes of others: the file formats of the field. They may open files, not sockets, and are strangers to each other."""
