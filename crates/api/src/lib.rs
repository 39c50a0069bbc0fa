//! JSON shapes of the HTTP interface, shared by gateway, client and command line.
