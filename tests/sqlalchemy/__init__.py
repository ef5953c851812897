"""Tests of katalys_wsgi/outbox/sqlalchemy/, a module for each of its modules."""
