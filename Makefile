# make demo        installs everything, writes synthetic data, trains, tests and visualizes Mask R-CNN
# make test        installs everything, runs the tests
# make test-slow   installs everything, runs longer tests: training (SEEDS=5: five seeds), more configs
# make test-faults installs everything, runs 2,000 cases of the property tests, kills trainings
# make lint        installs everything, checks style and types
# make docs        installs the site generator into .venv-docs, builds a site of docs/ in site/
# make env         installs everything, or only what is missing or has changed
# make clean       removes the virtual environments, data/toy and work_dirs/demo
#
# VENV=/a/folder sets the folder of the virtual environment, and PYTHON=python3.12 its interpreter.
# FAMILY=openmmlab installs the original OpenMMLab packages into an environment of their own.

FAMILY ?= onedl
VENV ?= $(if $(filter openmmlab,$(FAMILY)),.venv-openmmlab,.venv)
PYTHON ?=
python = $(VENV)/bin/python
toy := data/toy
demo := work_dirs/demo
config := configs/toy/maskrcnn_hatnet_toy.py

# PYTHONPATH would put other packages before those of the environment. Without bytecode, each process
# would compile the frameworks again, which takes longer than importing them.
unexport PYTHONPATH PYTHONDONTWRITEBYTECODE

.PHONY: help env clean demo test test-slow test-faults lint docs toy-data
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \(make\|VENV\|FAMILY\)/\1/p' Makefile

env:
	@VENV='$(abspath $(VENV))' PYTHON='$(PYTHON)' FAMILY='$(FAMILY)' sh tools/make_env.sh

clean:
	rm -rf $(toy) $(demo) $(patsubst %/stamp,%,$(wildcard $(VENV)/stamp .venv-docs/stamp))

# For models this small, a single-threaded process per core is faster than threads.
test: env
	@OMP_NUM_THREADS=1 $(python) -m pytest -n auto --dist worksteal

test-slow: env
	@$(python) -m pytest -m slow

test-faults: env
	@PROPERTY_CASES=2000 OMP_NUM_THREADS=1 $(python) -m pytest -n auto tests/test_properties.py
	@OMP_NUM_THREADS=1 $(python) -m pytest -n auto -m faults tests/test_kills.py

lint: env
	@$(python) -m ruff check
	@$(python) -m ruff format --check
	@$(python) -m mypy

# mkdocstrings formats signatures with the Ruff that it finds in PATH.
docs:
	@VENV='$(CURDIR)/.venv-docs' PYTHON='$(PYTHON)' FAMILY=docs sh tools/make_env.sh
	@PATH='$(CURDIR)/.venv-docs/bin':"$$PATH" .venv-docs/bin/python -m mkdocs build --strict

toy-data: env
	@$(python) tools/make_toy_data.py $(toy)

# The date of this file changes only when the data change.
$(toy)/toy.json: toy-data ;

sources := $(wildcard configs/hatnet/mask-rcnn_hatnet-s_fpn_1x_coco.py \
    configs/_base_/*.py configs/toy/*.py mmhatnet/*.py mmhatnet/*/*.py mmhatnet_cli/*.py)
$(demo)/trained: $(toy)/toy.json $(sources)
	@rm -rf $(demo)
	@echo '==> Training Mask R-CNN with HAT-Net: about 5 minutes on 2 cores'
	@$(python) tools/train.py $(config) --work-dir $(demo)
	@touch $@

demo: $(demo)/trained
	@echo '==> Testing it on images that it was not trained on'
	@$(python) tools/test.py $(config) $(demo)/$$(basename $$(cat $(demo)/last_checkpoint)) \
	    --work-dir $(demo)/test --show-dir $(CURDIR)/$(demo)/pictures
	@echo 'The data are in       $(toy)/coco'
	@echo 'The config is         $(config)'
	@echo 'The trained model is  $(demo)/'$$(basename $$(cat $(demo)/last_checkpoint))
	@echo 'The log is in         $(demo)'
	@echo 'Detections are in     $(demo)/pictures'
	@$(python) tools/check_goals.py $(config) $(demo)/test
