//! Protobuf frames between nodes, their versions, and conversions to domain types.
