"""MIDAS ``.mid`` files, and the index beside each run.

======== ===================================================================================================
module   what it is for
======== ===================================================================================================
events   events as bytes: decoding, encoding, joining fragmented ones; the layouts
dump     ODB dumps in XML and JSON
file     reading files, plain or compressed, event by event or in chunks
disk     files that are only appended to
index    the index and journal ``.idx``; its layout
writer   writing a run, block by block, and going on after a kill
sides    side files: what was not built
laws     what must hold in a file and its index, one generator per law
verify   proving a file by the laws
======== ===================================================================================================
"""
