//! A content-addressed object store: BLAKE3 ids, segment files, verification, pins, collection.
