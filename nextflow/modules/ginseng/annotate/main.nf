process GINSENG_ANNOTATE {
    tag "$meta.id"
    label 'process_medium'

    conda "${moduleDir}/environment.yml"
    container "ginseng-eqx:0.1.0"
    // The image runs `ginseng`, where Nextflow expects a shell.
    containerOptions "${ workflow.containerEngine in ['docker', 'podman'] ? '--entrypoint ""' : '' }"

    input:
    tuple val(meta), path(h5ad)
    path model

    output:
    tuple val(meta), path("${prefix}.h5ad"), emit: h5ad
    path "versions.yml"                    , emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    prefix = task.ext.prefix ?: "${meta.id}_annotated"
    if ("${h5ad}" == "${prefix}.h5ad") error "Input and output names are the same, set prefix in module configuration to disambiguate!"
    """
    ginseng annotate ${model} ${h5ad} --output ${prefix}.h5ad --quiet ${args}

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        ginseng: \$(ginseng --version | sed 's/ginseng //')
    END_VERSIONS
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}_annotated"
    """
    touch ${prefix}.h5ad

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        ginseng: \$(ginseng --version | sed 's/ginseng //')
    END_VERSIONS
    """
}
