"""The live web view of the journal: server-rendered pages, their JSON twins, and actions."""
