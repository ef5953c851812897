"""What the package costs, always beside what it is compared with; run.py prints the table."""
