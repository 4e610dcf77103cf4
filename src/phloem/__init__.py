"""phloem: data acquisition for physics experiments; run control and event building."""
