"""`cahqp init`: a plan and its configs for the user's own cameras."""
