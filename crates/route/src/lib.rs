//! Pure routing: which replica to ask, when to retry, sessions and deadlines.
