//! One session's life. Pure: `handle(event, now) -> effects`.
