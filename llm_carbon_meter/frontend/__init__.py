"""What one API server needs: estimates before a request, records after it."""
