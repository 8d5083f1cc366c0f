"""What goes wrong around a metered server, all of it in ten minutes, under load."""
