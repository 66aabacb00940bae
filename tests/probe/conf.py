"""A book of two chapters with everything a chapter can hold, for the tests of the notebooks."""

extensions = ["myst_nb", "sphinx_design", "sphinx_exercise", "sphinxcontrib.bibtex", "resbook_notebooks"]
root_doc = "index"
exclude_patterns = ["_build", "notebooks"]
html_title = "A probe"
html_theme = "sphinx_book_theme"
html_theme_options = {"repository_url": "https://github.com/OWNER/NAME", "repository_branch": "edition"}
numfig = True
exercise_style = "solution_follow_exercise"
bibtex_bibfiles = ["probe.bib"]
bibtex_reference_style = "author_year"
myst_enable_extensions = ["amsmath", "attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
nb_execution_show_tb = True
