"""Methods side by side: equal budgets, equal tuning, seeds, and one table of what came of it."""
