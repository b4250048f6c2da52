"""Audits: what alignment did to a model, as pure functions on records; and the study that makes the records."""
