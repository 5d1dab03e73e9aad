"""Views of a study of hyper-parameters: live, as a status, as a page."""
