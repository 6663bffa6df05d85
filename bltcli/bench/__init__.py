"""Methods side by side on one input: what is run, how it is measured, what it is compared with."""
