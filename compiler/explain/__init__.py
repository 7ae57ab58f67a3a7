"""Why a compiled artifact is worse than its model: which weight does what harm, in figures, in words and as a page."""
