"""The explorer: a run directory as a web page to play with, read-only and for one's own machine.

`app.create_app` puts it together; `triptych explore` serves it. Not here: anything that measures or writes.
"""
