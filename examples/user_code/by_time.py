"""Match = time without a bank TIME: eb_time says when a fragment was taken, in ns."""


def eb_time(source, fragment):
    """``fragment``: the event as the source sent it; here its bank TInn has the clock's time in ns."""
    return int(fragment.bank("TI" + source[-2:]).values[0])
