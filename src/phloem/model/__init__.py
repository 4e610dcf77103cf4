"""The nouns of the field: events, equipment, runs, accounts, and the tree of errors. No I/O."""
