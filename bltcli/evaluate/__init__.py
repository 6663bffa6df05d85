"""Evaluations: records that survive an interruption, tasks, scores and the report. Knows no click."""
