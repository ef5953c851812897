"""The promises of katalys_wsgi, one file per room."""
