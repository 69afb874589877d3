//! Sanitizers: what a launch may not do, found while it runs.
