"""The method: schedules, plans, trees, credit, losses. Knows neither configs nor files nor Ray."""
