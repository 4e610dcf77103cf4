"""User code of the event builder, called for each event: a veto, and a bank that sums up the fragments."""

import numpy as np

from phloem import EB_SKIP, EB_SUCCESS

PEDESTAL = 400  # ADC counts
threshold = 0.0


def eb_begin_of_run(run, user_field, restarted, ctx):
    """``user_field``: /Equipment/EB/Settings/User Field, the threshold in ADC counts here."""
    global threshold
    threshold = float(user_field)


def eb_user(fragments, event, ctx):
    """Leave out what is below threshold everywhere; tell the heights of the others in a bank SUMM."""
    heights = []
    for fragment in fragments:
        adc = fragment.bank("AD" + fragment.source[-2:])
        heights.append(0.0 if adc is None else adc.max() - PEDESTAL)
    if max(heights) < threshold:
        return EB_SKIP
    seen = int.from_bytes(ctx.state, "little") + 1  # events so far: state must be bytes, and nothing else may count
    ctx.state = seen.to_bytes(8, "little")
    event.bank("SUMM", np.array(heights, "f4"))
    event.bank("SEEN", np.array([seen], "u4"))
    return EB_SUCCESS


def eb_end_of_run(run):
    """Close what eb_begin_of_run opened."""
