"""What every serving engine's hooks share: wrapping, channel, meter process, routes."""
