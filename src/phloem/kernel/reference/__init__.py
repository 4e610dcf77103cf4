"""What the builder means, in plain Python: the specification to which the tests hold `phloem.kernel.Builder`, in C++.

Written for reading, not for speed. A fragment's way:

1. A frame comes from a source. Is it of this run, and is each of its events a valid one? If not: *quarantined*.
   So is one that lacks the time by which it is to be matched.
2. The source judges its fragments alone, in the order in which they come (``source.py``). Its numbers are *keys*:
   serial numbers without their wrap at 2^32, or times in ns. A number far beyond its neighbours: *quarantined*. The
   same again within the last ``window``: *duplicate*. More than ``reorder`` behind the source's own highest, or below
   what it has passed on already, or below what a mark has closed, or after its counter has restarted: *late*.
3. All others are passed on in rising order: a fragment is held while a lower one may still come.
4. An event opens at the lowest key that was passed on, and takes each source's first fragment up to ``match_window``
   above it (0 for serial numbers). It closes when every source is in it or past it: has passed on a higher key, has
   ended, or a mark says so. Events leave in rising order.
5. With all required sources in it the fragments are *built*; if one is missing they are *incomplete* and the event has
   a bank MISS, or *discarded*, as the policy says. An event of more than ``max_event`` bytes is discarded.
6. Matched by serial number, the times of an event's fragments may be compared before it leaves (``check.py``).

Nothing in 1 to 6 depends on time or on the order in which different sources' frames come. Only `Builder.close_without`
is asked because of time (a source is silent) or space, and each number that it decides is in a mark.

Differs from the C++ in that each fragment is judged when it comes, not when it is needed: what an account says is
the same once everything has been built, but the C++ may not have counted yet what lies behind an open event.
"""

from phloem.kernel.reference.builder import FATES, Builder

__all__ = ["FATES", "Builder"]
