"""The way of the wishes: run control, the directory of components, the ODB, the runs, the operator."""
