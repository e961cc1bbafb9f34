"""Ray, and nothing but Ray: sessions, elastic worker pools, gangs of ranks, weight publishing."""
