//! The gateway: admission, forwarding and the HTTP interface.
