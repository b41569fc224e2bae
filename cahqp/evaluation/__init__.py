"""What was reached, how sure that is, and a page that shows it."""
