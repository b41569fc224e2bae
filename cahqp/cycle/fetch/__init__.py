"""`cahqp fetch`: frames of folders, stores, streams and webcams."""
