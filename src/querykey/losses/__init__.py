"""Losses over a look-up: functions, one number a query."""
