"""Plans a study, measures its cells within a budget, and resumes where it stopped."""
