//! SWIM membership on foca as a pure core: packets in, effects out.
