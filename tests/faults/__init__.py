"""Nothing recorded is ever lost: tests that kill, fill, cut and corrupt."""
