"""Laws of the learning-rate schedule: whole loss curves, fitted jointly, and forecasts under other schedules."""
