"""The commands of `triptych`, one module each: parse, call, say where the results are. Nothing heavy is imported above."""
