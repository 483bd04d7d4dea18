SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python -m
INSTALLED := .venv/.installed

.PHONY: help install demo table test lint bench clean

help:  ## Show this help
	@awk -F ':.*  ## ' '/^[a-z]+:.*  ## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

install: $(INSTALLED)  ## Install the project and its pinned dependencies into .venv

# Both names, since older releases of pip read the first, and newer ones the second, for what builds
# the packages.
$(INSTALLED): export PIP_CONSTRAINT := constraints.txt
$(INSTALLED): export PIP_BUILD_CONSTRAINT := constraints.txt
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "brain_ldm needs Python 3.11 or newer, and '$(PYTHON)' is not one: make install PYTHON=python3.11" >&2; \
	    exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	$(RUN) pip install --quiet --editable '.[dev]'
	@touch $@

test: lint  ## Check style, imports between packages, and run the tests
	$(RUN) pytest

lint: $(INSTALLED)  ## Check style and the imports between packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

bench: $(INSTALLED)  ## Measure speed and memory (benchmarks/)
	@set -e; for benchmark in $(wildcard benchmarks/*.py); do echo "$$benchmark"; $(BIN)/python "$$benchmark"; done

# The demo: each stage is named by the file that its command writes last, so a second call goes on
# where the first one ended. A stage older than what it was made from is made again from nothing; an
# unfinished one is left for its command to take up.
define stage
	@if [ -e $@ ]; then rm -rf $(@D); fi
	@echo "$(1)"
	@$(RUN) $(2) && printf '  done in %d min %02d s\n' $$((SECONDS / 60)) $$((SECONDS % 60))
endef

COHORT := dataset_description.json
MODEL := weights.safetensors
SWEEPS := ventricular_volume age
SWEEP_COHORTS := $(SWEEPS:%=cohorts/demo_sweep_%) cohorts/demo_sweep_beyond

demo: reports/demo/index.html  ## Phantoms to synthetic brains and their report, on two CPU cores
	@echo "The report: $<"

cohorts/phantom/$(COHORT): | $(INSTALLED)
	$(call stage,Phantoms to learn from,brain_ldm.phantom out=$(@D) n=600 resolution=4 seed=1)

cohorts/phantom_measure/$(COHORT): | $(INSTALLED)
	$(call stage,Phantoms for the measuring networks alone,brain_ldm.phantom out=$(@D) n=450 resolution=4 seed=2)

models/segmenter_demo/$(MODEL) models/brain_age_demo/$(MODEL): cohorts/phantom_measure/$(COHORT)

models/ae_demo/$(MODEL): cohorts/phantom/$(COHORT) models/segmenter_demo/$(MODEL)

models/ldm_demo/$(MODEL): cohorts/phantom/$(COHORT) models/ae_demo/$(MODEL)

models/%_demo/$(MODEL): | $(INSTALLED)
	$(call stage,Training $*_demo,brain_ldm.train experiment=$*_demo resume=auto)

cohorts/demo_synthetic/$(COHORT): models/ldm_demo/$(MODEL)
	$(call stage,Synthetic brains for the held-out participants,brain_ldm.sample model=models/ldm_demo \
	    table=cohorts/phantom/participants.tsv split=test extrapolate=true out=$(@D) seed=1 \
	    sampler.grid=trailing)

cohorts/demo_sweep_%/$(COHORT): models/ldm_demo/$(MODEL)
	$(call stage,One brain as its $* changes,brain_ldm.sample model=models/ldm_demo sweep=$* n=7 out=$(@D) seed=1 sampler.grid=trailing)

# As in the paper's figure 4: from -.5 to 1.9, where 0 and 1 are the ends of the training range.
cohorts/demo_sweep_beyond/$(COHORT): models/ldm_demo/$(MODEL)
	$(call stage,One brain as its ventricles go beyond all that was learnt,brain_ldm.sample model=models/ldm_demo \
	    sweep=ventricular_volume n=9 'ranges={ventricular_volume: [-35564$(comma) 174426.4]}' extrapolate=true \
	    out=$(@D) seed=1 sampler.grid=trailing)

empty :=
comma := ,
space := $(empty) $(empty)
DEMO_SWEEPS = [$(subst $(space),$(comma),$(SWEEP_COHORTS))]

reports/demo/index.html: models/segmenter_demo/$(MODEL) models/brain_age_demo/$(MODEL) \
    cohorts/demo_synthetic/$(COHORT) $(SWEEP_COHORTS:%=%/$(COHORT))
	$(call stage,Real and synthetic held against each other,brain_ldm.evaluate real=cohorts/phantom \
	    synthetic=cohorts/demo_synthetic "sweeps=$(DEMO_SWEEPS)" \
	    features=segmenter embedding=null pairs=300 out=$(@D))

# The paper's Table 1 on phantoms: every row by the demo's models and by those of another seed, 256
# brains each. The covariates asked for are of people that no generator saw; without guidance.
RUNS := demo demo_s1
REQUESTS := table=cohorts/phantom_measure/participants.tsv n=256 seed=1 extrapolate=true
table_row = $(1): [$(subst $(space),$(comma),$(RUNS:%=cohorts/table_$(2)_%))]

table: reports/table/index.html  ## LSGAN, VAE-GAN and the diffusion model in one table (hours)
	@echo "The report: $<"

models/lsgan_demo/$(MODEL) models/vae_gan_demo/$(MODEL): cohorts/phantom/$(COHORT)

models/lsgan_demo_s1/$(MODEL) models/vae_gan_demo_s1/$(MODEL): cohorts/phantom/$(COHORT)

models/ae_demo_s1/$(MODEL): cohorts/phantom/$(COHORT) models/segmenter_demo/$(MODEL)

models/ldm_demo_s1/$(MODEL): cohorts/phantom/$(COHORT) models/ae_demo_s1/$(MODEL)

models/%_demo_s1/$(MODEL): | $(INSTALLED)
	$(call stage,Training $*_demo with another seed,brain_ldm.train experiment=$*_demo seed=1 out=$(@D) \
	    $(if $(filter ldm,$*),task.autoencoder=models/ae_demo_s1) resume=auto)

cohorts/table_lsgan_%/$(COHORT): models/lsgan_%/$(MODEL)
	$(call stage,Brains of lsgan_$*,brain_ldm.sample model=$(<D) n=256 seed=1 out=$(@D))

cohorts/table_vae_gan_%/$(COHORT): models/vae_gan_%/$(MODEL)
	$(call stage,Brains of vae_gan_$*,brain_ldm.sample model=$(<D) n=256 seed=1 out=$(@D))

cohorts/table_ddim_%/$(COHORT): models/ldm_%/$(MODEL)
	$(call stage,Brains of ldm_$* in 50 steps,brain_ldm.sample model=$(<D) $(REQUESTS) sampler.grid=trailing out=$(@D))

cohorts/table_ldm_%/$(COHORT): models/ldm_%/$(MODEL)
	$(call stage,Brains of ldm_$* in 1000 steps,brain_ldm.sample model=$(<D) $(REQUESTS) sampler=ddpm batch_size=64 out=$(@D))

models/embedding_demo/$(MODEL): cohorts/phantom/$(COHORT)

reports/table/index.html: models/segmenter_demo/$(MODEL) models/brain_age_demo/$(MODEL) \
    models/embedding_demo/$(MODEL) models/ae_demo/$(MODEL) $(SWEEP_COHORTS:%=%/$(COHORT)) \
    $(foreach run,$(RUNS),$(foreach row,lsgan vae_gan ldm ddim,cohorts/table_$(row)_$(run)/$(COHORT)))
	$(call stage,The table,brain_ldm.evaluate real=cohorts/phantom autoencoder=models/ae_demo \
	    "synthetic={$(call table_row,LSGAN,lsgan)$(comma) $(call table_row,VAE-GAN,vae_gan)$(comma) \
	    $(call table_row,LDM,ldm)$(comma) $(call table_row,LDM + DDIM,ddim)}" \
	    "sweeps=$(DEMO_SWEEPS)" features=segmenter out=$(@D))

clean:  ## Remove what the demo and the tools made (cohorts, models, reports, caches; .venv stays)
	rm -rf cohorts/phantom cohorts/phantom_measure cohorts/demo_synthetic $(SWEEP_COHORTS)
	rm -rf models/segmenter_demo models/brain_age_demo models/ae_demo models/ldm_demo reports/demo
	rm -rf models/embedding_demo models/lsgan_demo models/vae_gan_demo models/*_demo_s1
	rm -rf cohorts/table_* reports/table cohorts/demo_many reports/study_*
	rm -rf caches/cohorts_phantom caches/cohorts_phantom_measure caches/evaluation
	rm -rf .pytest_cache .ruff_cache .import_linter_cache build dist
	find brain_ldm tests -name __pycache__ -prune -exec rm -rf {} +
