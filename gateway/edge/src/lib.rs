//! The HTTP edge: listeners, authentication, routing, relay and the API facades.
