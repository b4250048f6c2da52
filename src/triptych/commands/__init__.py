"""The commands of `triptych`, one module each: parse, call, say where the results are. Imports stay light here."""
