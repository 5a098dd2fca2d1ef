"""Records into tables: what may be compared, by how much arms differ, and how sure that is."""
