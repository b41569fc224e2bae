"""Arms of adaptation over seeds."""
