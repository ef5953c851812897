"""Tests of katalys_wsgi/cli/, a module for each of its modules; the commands themselves: tests/test_cli.py."""
