"""The way of the data, one file per stop: frontend, builder, logger; and what a component is."""
