//! Reconcilers: metadata feed, placement intent, replica moves, leader balance, liveness.
