"""What was sold, and how Katalys is told."""
