"""Watches requests of httpx and httpx2: one state machine for each physical request, one call for its retries."""
