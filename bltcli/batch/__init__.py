"""Many records through one model: a record in is a record out, in order, whatever happens."""
